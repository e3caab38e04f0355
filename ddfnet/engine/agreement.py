"""Whether all processes of a run were started alike: what differs would train on without a word, or hang."""

from typing import Any

import ddfnet
from ddfnet.engine.distributed import Distributed
from ddfnet.engine.run_folder import flat
from ddfnet.tasks import Config, Task
from ddfnet.utils.environment import git_commit
from ddfnet.utils.errors import UserError

# Machines may keep their data in different places; what is in them is compared by its hashes.
_OWN = ("data.root", "data.workers", "data.val_cache", "data.timeout", "data.start_method", "run.device")


def check_same_config(config: Config, distributed: Distributed) -> None:
    """UserError where processes have different configurations, or run different code: it names the first difference."""
    facts = {key: value for key, value in flat(config.model_dump(mode="json")).items() if key not in _OWN}
    _check_same({**facts, "ddfnet": ddfnet.__version__, "git commit": git_commit()}, distributed)


def check_same_data(task: Task, distributed: Distributed) -> None:
    """UserError where processes see different data: it names the first class that differs."""
    facts: dict[str, Any] = {"train images": task.train_images, "val images": task.val_images}
    if not task.class_hashes:
        facts |= {f"{split} images (hash of their names)": value for split, value in task.name_hashes().items()}
    for split, prints in task.class_hashes.items():
        facts |= {f"{split} class {name} (hash of its images)": value for name, value in prints.items()}
    _check_same(facts, distributed)


def _check_same(facts: dict[str, Any], distributed: Distributed) -> None:
    first, *others = distributed.gather_objects(facts)
    for rank, other in enumerate(others, 1):
        for key in [*first, *(other.keys() - first.keys())]:
            one, two = first.get(key, "absent"), other.get(key, "absent")
            if one != two:
                raise UserError(
                    f"the processes differ in {key}: {one!r} on process 0, {two!r} on process {rank}; "
                    "start all with the same configuration, code and data"
                )
