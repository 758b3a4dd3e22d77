GREETING = "hello from the module beside"
