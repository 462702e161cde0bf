"""Where to head next: graphs of the data, objects to move, and the planners on them."""
