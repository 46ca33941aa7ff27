"""Tracing of a reward function to a program whose sites a learning rule can visit.

The modules, from bottom to top: `recognition` identifies a layer's product, bias and activation,
`program` defines the operations, `shifts` finds stopped values that cancel, `flatten` and `build`
make a program from a jaxpr, and `run` executes it. `grlu.influence` finds the rewards that each
element of a site affects, and `grlu.network` combines them.
"""
