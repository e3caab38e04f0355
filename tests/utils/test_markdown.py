"""Names of users in pages of Markdown."""

from ddfnet.utils.markdown import plain, table


def test_names_have_no_markup_of_their_own():
    assert plain("<script>alert(1)</script>") == r"\<script>alert(1)\</script>"
    assert plain("a\nb *c* `d` [e](f) g_h") == r"a b \*c\* \`d\` \[e\](f) g_h"


def test_a_bar_in_a_name_stays_in_its_cell():
    assert table(("name",), [[plain("a|b")]]).splitlines()[2] == r"| a\|b |"
