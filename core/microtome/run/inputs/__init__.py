"""From what a user names to slides at hand: found, told apart, copied near."""
