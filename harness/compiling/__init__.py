"""Steps as compiled graphs, and whether compiling pays."""
