"""The command line: a module per verb, each with ``HELP``, ``EXAMPLE``, ``add_arguments(parser)`` and ``run(options)``.

Only this package prints, and only it exits. `jebm.commands.main` has the table of verbs; importing a verb, and adding
its arguments, loads nothing heavy (those of ``restore`` are fields of its configurations, which load JAX).
"""
