"""The profile of one objective: every diagnostic's score beside those of baselines, its frontier, and the card that shows them."""

from toy_bandits.profile.measuring import Profile, profile

__all__ = ["Profile", "profile"]
