"""The discrete-event simulator: policies of core under its own clock (a later issue builds it)."""
