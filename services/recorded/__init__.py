"""The recorded files as others read them: their columns, and rows back as messages. A library of the services, no service itself."""
