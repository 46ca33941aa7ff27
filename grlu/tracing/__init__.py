"""Tracing: from a reward function to a program whose sites a learning rule can visit.

The modules, from bottom to top: `jaxprs` reads jaxprs, `widening` evaluates them in float32,
`recognition` tells a layer's product, bias and activation apart, `program` is what a rule runs,
`flatten` and `build` make a program from a jaxpr, `rows` and `influence` find which rewards each
element of a site moves, and `network` puts them together.
"""
