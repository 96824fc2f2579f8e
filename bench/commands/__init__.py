"""One file for each command, as conf/do/ names them."""
