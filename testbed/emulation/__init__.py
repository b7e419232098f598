"""Emulated boards: namespaces, sshd, synthetic sysfs under the real jtop."""
