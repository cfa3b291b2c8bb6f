"""From one volume to a model: the sample, its noise and blur, pairs, fitting, and what the result is worth."""
