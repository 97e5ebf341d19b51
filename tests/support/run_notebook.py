"""Script that runs a notebook's cells in a shell of IPython, as Jupyter would: ``run_notebook.py PATH``.

It prints a line of JSON for each code cell: its printed text, the HTML sizes of its displayed objects, the number of
figures so far, and its duration. It ends at the first cell that fails.
"""

import contextlib
import io
import json
import os
import sys
import time
import warnings
from pathlib import Path

from IPython.core.interactiveshell import InteractiveShell
from matplotlib import pyplot as plt
from traitlets.config import Config


def run(path):
    warnings.simplefilter("error")
    plt.switch_backend("Agg")
    os.chdir(path.parent)
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.xmode = "Minimal"
    shell = InteractiveShell.instance(config=config)
    shown = []
    shell.displayhook.__class__.__call__ = lambda _hook, result=None: None if result is None else shown.append(result)
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] != "code":
            continue
        shown.clear()
        printed = io.StringIO()
        began = time.perf_counter()
        with contextlib.redirect_stdout(printed):
            result = shell.run_cell("".join(cell["source"]))
        if not result.success:
            sys.exit(f"cell {number}: {result.error_in_exec or result.error_before_exec!r}\n{printed.getvalue()}")
        html = [len(it._repr_html_()) for it in shown if hasattr(type(it), "_repr_html_")]
        report = {"cell": number, "printed": printed.getvalue(), "html": html, "figures": len(plt.get_fignums())}
        sys.__stdout__.write(json.dumps({**report, "seconds": time.perf_counter() - began}) + "\n")


if __name__ == "__main__":
    run(Path(sys.argv[1]).resolve())
