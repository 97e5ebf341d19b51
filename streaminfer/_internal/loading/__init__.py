"""Loading of modules: at first use, compiled or uncompiled."""
