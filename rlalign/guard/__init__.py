"""A process beside the ranks of a machine that ends them when one fails, hangs or is lost."""
