"""All objectives over all diagnostics: the leaderboard at each one's best strength, and the factorial of pair losses and regularisers."""
