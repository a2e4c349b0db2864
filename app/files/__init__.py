"""Files that the commands read and write. Knows neither models nor HTTP."""
