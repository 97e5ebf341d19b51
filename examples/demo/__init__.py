"""The parts of the live demo, one file each; ``live_demo.py`` puts them together.

* ``audio`` and ``video`` load the clips, ``microphones`` and ``cameras`` send them as the streams of ``live``,
  ``services`` builds the stacks, and ``by_hand`` is the same without this library.
* ``calibration`` measures the unbatched ways, ``load_sweep`` drives both ways at the same loads, and ``comparison``
  says what the repeats support.
* ``trials`` serves microphones and cameras together, ``overload`` too many cameras for a while, and ``visitors`` shows
  the use of a cache; ``budget`` has the error budgets, and ``faces`` and ``recognition`` read the responses.
* ``report`` has the tables, ``sentences`` the words, ``sweep_plot``, ``overload_plot`` and ``plots`` the figures,
  ``drawing`` their style, and ``page`` the HTML.
* ``meter`` and ``machine`` measure, ``findings`` has the results; ``progress`` and ``live_page`` show the progress.
"""
