"""The commands of ``loredit``, one file each. Heavy imports stand inside of them, so that ``--help`` is quick."""
