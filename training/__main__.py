import sys

from .cli import main

if __name__ == "__main__":  # data workers may import this module again
    sys.exit(main())
