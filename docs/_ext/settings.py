"""Write docs/settings.md, the table of all settings, from the fields of ``Config``.

Run ``python docs/_ext/settings.py`` after a setting has changed; a test compares.
"""

from dataclasses import fields
from pathlib import Path

from minidiff.training.config import GATED, RECIPES, Config, option, values_text

PAGE = Path(__file__).parents[1] / "settings.md"
HEAD = """# Settings

All settings of a training run. In Python they are the fields of
{class}`~minidiff.training.config.Config`; on the command line they are options of `minidiff train`
and, with commas between several values, of `minidiff sweep`. The columns *MNIST* and *digits* are
the recipes of the two datasets. An interval such as `[0, 1)` includes 0 and excludes 1. A share of
the steps counts all steps of the run.

"""


def settings_table() -> str:
    """Return the table in Markdown."""
    heads = ("setting", "option", "MNIST", "digits", "values", "used by", "meaning")
    rows = [heads, ("---",) * len(heads)]
    for item in fields(Config):
        used_by = item.metadata["used_by"]
        users = {(): "all runs", GATED: "runs with gates"}.get(used_by, ", ".join(used_by))
        if unless := item.metadata["unless"]:
            users += f", unless `{unless[0]}` is {unless[1]:g}"
        recipes = (str(getattr(RECIPES[name], item.name)) for name in ("mnist", "digits"))
        names = f"`{item.name}`", f"`{option(item.name)}`"
        rows.append((*names, *recipes, f"`{values_text(item)}`", users, item.metadata["meaning"]))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page() -> str:
    """Return the whole page."""
    return HEAD + settings_table()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
