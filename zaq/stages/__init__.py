"""The steps that methods are lists of, and the blocks they learn one after another."""
