module forge.example/rig/cached

go 1.24

require (
	github.com/spf13/cobra v1.9.1
	golang.org/x/net v0.43.0
	golang.org/x/text v0.28.0
	gopkg.in/yaml.v3 v3.0.1
)

require (
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/spf13/pflag v1.0.6 // indirect
)
