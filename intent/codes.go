package intent

// The codes of this package. A code is stable and never used again for
// something else; what it says is in Codes.
const (
	codeSyntax        = "E0101"
	codeBytes         = "E0102"
	codeNoOperation   = "E0103"
	codeFeature       = "E0104"
	codeUnknownKey    = "E0105"
	codeDuplicateKey  = "E0106"
	codeKind          = "E0107"
	codeMissingKey    = "E0108"
	codeValue         = "E0109"
	codeName          = "E0110"
	codeReserved      = "E0111"
	codeTwice         = "E0112"
	codeNoCaller      = "E0113"
	codeNoService     = "E0114"
	codeNoZone        = "E0115"
	codeHost          = "E0116"
	codeGatewayHost   = "E0117"
	codeAddress       = "E0118"
	codePath          = "E0119"
	codeFile          = "E0120"
	codeTooMuch       = "E0121"
	codeNoIntent      = "E0122"
	codeRootOnly      = "E0123"
	codeTrustDomain   = "E0124"
	codeKeys          = "E0125"
	codeAlgorithm     = "E0126"
	codeURL           = "E0127"
	codeContradiction = "E0128"
	codeOperation     = "E0129"
	codeOverlap       = "E0130"
	codeCannotCall    = "E0131"
	codeCall          = "E0132"
	codeNothing       = "E0133"
	codeCondition     = "E0134"
	codeWorkload      = "E0135"
	codeFileName      = "E0136"
	codeNoNode        = "E0137"
	codeUnusedLogin   = "W0101"
	codeOtherEstate   = "W0102"
	codeUnusedNode    = "W0103"
)

// Code is a stable name for one kind of diagnostic.
type Code struct {
	Code    string // such as "E0103"
	Meaning string // one sentence
}

// Codes lists every code of the language, in order.
func Codes() []Code {
	return []Code{
		{codeSyntax, "The file is not YAML."},
		{codeBytes, "The file holds a character that an intent may not hold: a tab, a control character, a character that changes the direction of text, or bytes that are not UTF-8."},
		{codeNoOperation, "The service has no operation of this name."},
		{codeFeature, "The file uses a part of YAML that makes a file mean something other than what it seems to say: anchors, aliases, merge keys, tags, directives, several documents or keys that are not words."},
		{codeUnknownKey, "The language has no such key here."},
		{codeDuplicateKey, "A mapping has one key twice."},
		{codeKind, "The value is missing or of the wrong kind, such as a list where text belongs."},
		{codeMissingKey, "A required key is missing."},
		{codeValue, "The value does not say what this key needs, such as a duration."},
		{codeName, "The name does not follow the rule for names."},
		{codeReserved, "The name is a word of the language."},
		{codeTwice, "Two places define one thing."},
		{codeNoCaller, "No service or login has this name, and no workload of a partner."},
		{codeNoService, "No service has this name."},
		{codeNoZone, "No service is in a zone of this name."},
		{codeHost, "The host name is not in its one canonical form."},
		{codeGatewayHost, "The host is not one of the gateway's."},
		{codeAddress, "The address is not host:port, [ip]:port or dns:host:port."},
		{codePath, "The path is absolute, leaves the intent's directory, or is not written in its plain form."},
		{codeFile, "A file cannot be read."},
		{codeTooMuch, "There is more input than the bounds allow."},
		{codeNoIntent, "The directory holds no merlon.yaml."},
		{codeRootOnly, "A key that is about the whole estate stands in the file of one owner."},
		{codeTrustDomain, "The trust domain is not one that SPIFFE allows."},
		{codeKeys, "The keys of a login, a partner or a node cannot be used: of another format, empty, or holding a private key."},
		{codeAlgorithm, "The signature algorithm is unknown or unsafe."},
		{codeURL, "The URL is not a plain https URL."},
		{codeContradiction, "Two sentences contradict each other."},
		{codeOperation, "The operation is not METHOD /path."},
		{codeOverlap, "Two sentences are about the same caller and the same operation."},
		{codeCannotCall, "This caller cannot call this service."},
		{codeCall, "The text is not a call, or not a set of calls."},
		{codeNothing, "The sentence cannot have any effect."},
		{codeCondition, "The condition is empty or too long."},
		{codeWorkload, "Two services would be recognised by the same sign."},
		{codeFileName, "A file is named almost like an intent, and would not be read."},
		{codeNoNode, "No node has this name."},
		{codeUnusedLogin, "A login is defined and no rule lets it call anything."},
		{codeOtherEstate, "A directory below has a merlon.yaml of its own and is another intent."},
		{codeUnusedNode, "A node is defined and no service is on it."},
	}
}
