"""The operators, each with its reach: the network, down and up, one ×2 stage; and the model made of stages."""
