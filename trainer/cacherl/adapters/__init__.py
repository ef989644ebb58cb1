"""One file per framework; everyone else meets it through a Protocol."""
