"""One net from several: methods that merge parameters without training.

Each is a pure function of the parameters of a few nets, with the seed axis first: row s of the merged net depends on
row s of the nets alone. `harness.merging.table` lists them with their coefficients.
"""
