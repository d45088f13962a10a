"""mRP-LLM: one language model that plays a whole cast.

Imports nothing heavy: `import mrp` and `mrp --help` stay under a second. The rooms are listed in docs/design.md.
"""

__version__ = "0.1.0"
