package workloadapi

import (
	"maps"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

// wildcard asks for what is usual.
const wildcard = "*"

// delta is a conversation in which requests add and take away names, and
// answers hold what the client has not yet (xDS, incremental).
type delta struct {
	begun bool
	names map[string]bool
	known map[string]string // version that the client has; "" where it knows that there is none
}

// change is what is read of a DeltaDiscoveryRequest (envoy.service.discovery.v3).
type change struct {
	subscribe, unsubscribe []string
	has                    map[string]string // versions, of a client that was connected before
	refused                bool
}

// parseChange reads a DeltaDiscoveryRequest.
func parseChange(b []byte) (change, error) {
	c := change{has: map[string]string{}}
	err := each(b, func(number protowire.Number, v []byte) error {
		switch number {
		case 2: // type_url
			return checkType(v)
		case 3: // resource_names_subscribe
			return addName(&c.subscribe, v)
		case 4: // resource_names_unsubscribe
			return addName(&c.unsubscribe, v)
		case 5: // initial_resource_versions
			if len(c.has) == maxNames {
				return status.Errorf(codes.InvalidArgument, "more than %d versions", maxNames)
			}
			var name, version string
			err := each(v, func(number protowire.Number, v []byte) error {
				switch number {
				case 1:
					name = string(v)
				case 2:
					version = string(v)
				}
				return nil
			})
			c.has[name] = version
			return err
		case 7: // error_detail
			c.refused = true
		}
		return nil
	})
	return c, err
}

// hear takes a DeltaDiscoveryRequest. Who asks for a name again is told again.
func (d *delta) hear(request []byte) (refused bool, err error) {
	c, err := parseChange(request)
	if err != nil {
		return false, err
	}
	if !d.begun {
		d.begun, d.names, d.known = true, map[string]bool{}, map[string]string{}
		if len(c.subscribe) == 0 { // as long as no name was ever said
			c.subscribe = []string{wildcard}
		}
	} else {
		c.has = nil // of the first request alone
	}
	for _, name := range c.subscribe {
		d.names[name] = true
		delete(d.known, name)
	}
	maps.Copy(d.known, c.has)
	for _, name := range c.unsubscribe {
		delete(d.names, name)
		delete(d.known, name)
	}
	if len(d.names) > maxNames {
		return false, status.Errorf(codes.InvalidArgument, "more than %d names", maxNames)
	}
	return c.refused, nil
}

// say is a DeltaDiscoveryResponse.
func (d *delta) say(o *offer) []byte {
	if !d.begun {
		return nil
	}
	names := maps.Clone(d.names)
	if names[wildcard] {
		delete(names, wildcard)
		for _, name := range usual {
			names[name] = true
		}
	}
	var resources, removed []byte
	for _, name := range slices.Sorted(maps.Keys(names)) {
		secret, version := o.secret(name), ""
		if secret != nil {
			version = versionOf(secret)
		}
		if had, ok := d.known[name]; ok && had == version {
			continue
		}
		d.known[name] = version
		if secret == nil {
			removed = field(removed, 6, name)
			continue
		}
		resources = field(resources, 2, field(field(field(nil, 1, version), 2, anyOf(secretType, secret)), 3, name))
	}
	if len(resources)+len(removed) == 0 {
		return nil
	}
	b := append(resources, removed...)
	return field(field(b, 4, secretType), 5, versionOf(b)) // nonce
}
