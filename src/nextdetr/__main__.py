"""``python -m nextdetr``: the ``nextdetr`` command."""

from nextdetr.cli.main import main

main()
