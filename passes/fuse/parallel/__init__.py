"""Structural re-parameterization: parallel linear branches of one value become one operator.

Blocks trained as several branches that are added up (RepVGG, arXiv 2101.03697; ACNet, arXiv
1908.03930; UniRepLKNet, arXiv 2311.15599; LoRA, arXiv 2106.09685) compute what their widest branch
can compute alone. Sums of weights are made in float64 and rounded once, to the weight's type.
"""
