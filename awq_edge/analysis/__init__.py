"""The experiments of the AWQ paper on a user's own model; needs the extra [analyze]."""
