"""A model and a text: what is known of every input and output. Host only: the extra [convert].

Owns every walk through a whole model or layer that measures or rounds. Refuses to choose codes and
scales of a matrix: ``awq_edge.quantize`` does.
"""
