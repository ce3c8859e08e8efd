"""Pages, and the scripts that make more of them."""
