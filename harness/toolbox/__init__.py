"""Building blocks of strategies."""
