"""The policy: backbone with SID tokens, rollouts, scoring and beam search."""
