"""Forecasters: functions from the points of a weight to its forecast."""
