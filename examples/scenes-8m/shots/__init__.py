"""A small OpenFlamingo that learns a way of describing scenes from the pictures in its prompt."""
