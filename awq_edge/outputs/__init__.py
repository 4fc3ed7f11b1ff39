"""How everything that awq-edge writes comes to its name: whole, synced, and over nothing else.

``place`` says where something may appear and gives it its name in the end, ``workplace`` is the
directory of our own in which it is made, ``whole_file`` joins the two for one file.
"""
