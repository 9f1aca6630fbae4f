"""What answers are worth: functions of the user's, and built-in checks."""

from llm.training.rewards.functions import Reward, Rewards, load_reward, reward_name

__all__ = ["Reward", "Rewards", "load_reward", "reward_name"]
