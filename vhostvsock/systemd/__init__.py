"""What vhostvsock says to systemd."""
