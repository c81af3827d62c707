"""python -m zaq"""

from zaq.cli import main

if __name__ == "__main__":
    main()
