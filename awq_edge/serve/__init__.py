"""``awq-edge serve``: packed models over HTTP, as clients know it (extra [serve])."""
