# Sourced by demo.sh and test.sh: makes .venv with everything needed, or reuses it, and activates it.
# DDFNET_VENV names another folder; PYTHON another interpreter (3.10 or newer).

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${DDFNET_VENV:-.venv}
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "ddfnet needs Python 3.10 or newer; '$python' is $("$python" --version 2>&1). Set PYTHON=..." >&2
    exit 2
fi

# The stamp names what was installed: a changed requirement installs again, an unchanged one costs nothing.
wanted=$(cat requirements.txt pyproject.toml | cksum)
if [ ! -x "$venv/bin/python" ] || [ "$(cat "$venv/ddfnet.stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing into $venv (PyTorch is several GB: a few minutes)"
    rm -f "$venv/ddfnet.stamp"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt -e ".[test]"
    echo "$wanted" > "$venv/ddfnet.stamp"
fi
export PATH="$PWD/$venv/bin:$PATH"
case $venv in /*) export PATH="$venv/bin:$PATH" ;; esac
