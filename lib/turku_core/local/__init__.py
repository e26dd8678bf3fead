"""A whole Turku on one machine, in one folder: for trying it, and for tests.

`LocalTurku` starts one and stops it, ``turku-local`` is the command for it, and ``turku-local
demo`` shows a backup and a restore of real files.
"""
