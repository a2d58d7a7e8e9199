"""BFCL v3 multi-turn: function calling against stateful backends."""
