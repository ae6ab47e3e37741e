"""What every command needs: flags, progress, devices, worker processes."""
