// proxy LISTEN SERVER [copy]: a TCP proxy.  proxy LISTEN connect: one for HTTP's CONNECT.
// proxy LISTEN echo: sends back what comes.  io.Copy between two connections is splice(2);
// with "copy" it goes through a buffer of the program's own.
package main

import (
	"bufio"
	"io"
	"log"
	"net"
	"net/http"
	"os"
)

type plain struct{ io.Writer } // hides ReadFrom

func forward(to, from *net.TCPConn) {
	var writer io.Writer = to
	if len(os.Args) > 3 {
		writer = plain{to}
	}
	io.Copy(writer, from)
	to.CloseWrite()
}

// The client waits for the answer before it sends more, so nothing of that is in the buffer.
func dial(client net.Conn) (net.Conn, error) {
	if os.Args[2] != "connect" {
		return net.Dial("tcp", os.Args[2])
	}
	request, err := http.ReadRequest(bufio.NewReader(client))
	if err != nil {
		return nil, err
	}
	server, err := net.Dial("tcp", request.Host)
	if err == nil {
		_, err = io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n")
	}
	return server, err
}

func serve(client net.Conn) {
	defer client.Close()
	if os.Args[2] == "echo" {
		forward(client.(*net.TCPConn), client.(*net.TCPConn))
		return
	}
	server, err := dial(client)
	if err != nil {
		log.Print(err)
		return
	}
	defer server.Close()
	go forward(server.(*net.TCPConn), client.(*net.TCPConn))
	forward(client.(*net.TCPConn), server.(*net.TCPConn))
}

func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(client)
	}
}
