"""The parts of the live demo, one file each; ``live_demo.py`` puts them together.

``audio`` and ``video`` bring the clips into memory, ``microphones`` and ``cameras`` send them live, ``services`` builds
the stacks, ``trials`` finds how many microphones a service holds, ``visitors`` shows what a cache is for, ``budget``
keeps error budgets, ``faces`` and ``recognition`` read the answers, and ``report`` with ``plots`` writes down what
happened.
"""
