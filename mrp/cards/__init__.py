"""Character cards (V1, V2, V3; PNG or JSON) into the cast and out of it again, no field lost.

`png.py` reads and writes the chunks, `card.py` the JSON in them, `character.py` translates between a card and a
`Character`; `take_in.py` is `mrp card import`, `hand_out.py` is `mrp card export`.
"""
