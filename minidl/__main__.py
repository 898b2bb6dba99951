from minidl.cli import main

raise SystemExit(main())
